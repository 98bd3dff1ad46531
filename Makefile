# Needs python3 (3.11 or newer, with venv) and make, nothing else; `make lock` also wants uv.

PYTHON ?= python3
VENV := .venv
# Modules, not scripts: a script's first line breaks when the directory is moved.
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes
FREE_PORT := $(PY) -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'

.DEFAULT_GOAL := help
.PHONY: help run test nginx-test pgbouncer-test browser-test cost-test faults hostile lint format fuzz fuzz-database fuzz-model bench audit lock clean
# Two pips at once spoil one environment.
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile

run: export HOST ?= 127.0.0.1
run: export PORT ?= 8000
run: export AUTH ?= off
run: export WEBHOOKS_ALLOW_PRIVATE ?= 1
run: $(VENV)/run.stamp  ## migrate the database and serve on http://HOST:PORT (127.0.0.1:8000)
	@if [ -t 1 ]; then export LOG_FORMAT="$${LOG_FORMAT:-console}"; fi; \
	$(PY) -m flask --app wsgi db upgrade && exec $(PY) -m gunicorn -c gunicorn.conf.py wsgi:app

test: $(VENV)/dev.stamp  ## run the tests on SQLite and on PostgreSQL (ARGS="-k name" to choose)
	@$(PY) -m pytest $(ARGS)

# Debian keeps nginx where only root's PATH looks.
nginx-test: export PATH := $(PATH):/usr/sbin
nginx-test: $(VENV)/dev.stamp  ## drive the service through a real nginx (apt-get install nginx-light)
	@$(PY) -m pytest tests/nginx $(ARGS)

# What changes orders, and what must come out right under races. Left out: how often the server is asked, and how soon it
# gives up a lock, which a test cannot say behind a pooler.
pgbouncer-test: THROUGH_POOLER := idempotency idempotent_actions order_races order_lifecycle order_patch \
	conditional_changes change_limits batch order_model migrations
pgbouncer-test: export PATH := $(PATH):/usr/sbin
pgbouncer-test: $(VENV)/dev.stamp  ## drive the service through a real PgBouncer (apt-get install pgbouncer)
	@$(PY) -m pytest tests/pgbouncer $(ARGS)
	@$(PY) -m tests.pgbouncer.pooler $(PY) -m pytest -k "postgresql and not one_statement and not bounded_time" \
	$(THROUGH_POOLER:%=tests/test_%.py) $(ARGS)

browser-test: $(VENV)/dev.stamp  ## look at the pages in a real browser (apt-get install chromium)
	@$(PY) -m pytest tests/browser $(ARGS)

cost-test: $(VENV)/dev.stamp  ## count the instructions of requests (apt-get install valgrind)
	@$(PY) -m pytest tests/cost $(ARGS)

hostile: export PATH := $(PATH):/usr/sbin
hostile: export SECONDS_EACH ?= 5
hostile: $(VENV)/dev.stamp  ## the worst requests, bare and behind nginx; nobody else may wait (apt-get install nginx-light)
	@$(PY) -m pytest tests/hostile $(ARGS)

faults: export KILLS ?= 10
faults: $(VENV)/dev.stamp  ## kill servers and the database under load; nothing acknowledged may be lost (KILLS=10)
	@$(PY) -m pytest tests/faults $(ARGS)

lint: $(VENV)/dev.stamp  ## style, order of imports, types, layers, what attackers look for
	@$(PY) -m ruff format --check --quiet || { echo "Run make format." >&2; exit 1; }
	@$(PY) -m ruff check --quiet
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports
	@$(PY) -m bandit --quiet --ini setup.cfg --recursive app

format: $(VENV)/dev.stamp  ## format the code and sort the imports
	@$(PY) -m ruff check --quiet --fix --select I
	@$(PY) -m ruff format --quiet

fuzz: EXAMPLES ?= 100
fuzz: $(VENV)/dev.stamp  ## requests made up from the API description, on both databases (EXAMPLES=100 per operation)
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	DATABASE_URL="sqlite:///$$dir/orders.db" $(MAKE) --no-print-directory fuzz-database EXAMPLES=$(EXAMPLES)
	@$(PY) -m tests.support.postgres $(MAKE) --no-print-directory fuzz-database EXAMPLES=$(EXAMPLES)
	@$(MAKE) --no-print-directory fuzz-model MODEL_EXAMPLES=$(EXAMPLES)

fuzz-database: SCOPES := orders:read orders:write orders:manage privacy:erase
fuzz-database: export HOST := 127.0.0.1
fuzz-database: export AUTH := required
fuzz-database: export LOG_LEVEL := warning
fuzz-database:
	@$(PY) -m flask --app wsgi db upgrade
	@export PORT=$$($(FREE_PORT)); \
	key=$$($(PY) -m flask --app wsgi api-keys create --name fuzz $(SCOPES:%=--scope %) 2>/dev/null); \
	$(PY) -m gunicorn -c gunicorn.conf.py --log-level warning wsgi:app & \
	server=$$!; trap 'kill $$server; wait $$server' EXIT; \
	$(PY) -m schemathesis.cli run "http://127.0.0.1:$$PORT/openapi.json" --wait-for-schema 10 \
	--header "Authorization: Bearer $$key" --max-examples $(EXAMPLES)

fuzz-model: export MODEL_EXAMPLES ?= 2000
fuzz-model: export LOG_LEVEL := error
fuzz-model: $(VENV)/dev.stamp  ## random lives of orders against a model, on both databases (MODEL_EXAMPLES=2000 lives)
	@$(PY) -m pytest tests/test_order_model.py --durations=2 --durations-min=1 $(ARGS)

# An environment of its own: what the peers bring must not meet the tests.
bench: export PATH := $(PATH):/usr/sbin
bench: $(VENV)/bench.stamp  ## measure the service against its peers (apt-get install nginx-light wrk; ARGS=--help)
	@$(VENV)/bench/bin/python -m bench.run $(ARGS)

audit:  ## look the locked requirements up in the package index's list of known vulnerabilities (needs uv)
	@uvx pip-audit --disable-pip --require-hashes --requirement requirements.txt

lock:  ## compile requirements*.in to requirements*.txt (ARGS=--upgrade for newer versions)
	@for file in requirements requirements-dev bench/requirements; do \
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(ARGS) --output-file $$file.txt $$file.in || exit; done

clean:  ## remove the environment and all caches; the orders in instance/ stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .import_linter_cache .hypothesis .schemathesis schemathesis-report
	@rm -rf .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing venv makes: where it is missing, the environment is half built.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	{ echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/run.stamp: requirements.txt $(VENV)/bin/pip
	@echo "Installing requirements.txt into $(VENV) …"
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/bin/pip
	@echo "Installing requirements-dev.txt into $(VENV) …"
	@$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/bench.stamp: bench/requirements.txt $(VENV)/bin/pip
	@echo "Installing bench/requirements.txt into $(VENV)/bench …"
	@$(PY) -m venv --clear $(VENV)/bench
	@$(VENV)/bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bench/requirements.txt
	@touch $@
