# Requires python3 (3.11 or newer, with venv) and make. `make lock` and `make audit` also require uv.

PYTHON ?= python3
VENV := .venv
# Modules are run, not scripts: after the directory is moved, the interpreter's path in a script is wrong.
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes
CLIENT := clients/typescript
DESCRIBE := $(PY) -c 'from app import create_app; print(create_app({"AUTH": "off"}).test_client().get("/openapi.json").text)'
FREE_PORT := $(PY) -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'

.DEFAULT_GOAL := help
.PHONY: help run test nginx-test pgbouncer-test browser-test console console-test screenshots node-test api-lint api-test client-test client-types python-types storefront storefront-files broker-test tracing-test alerts-test container-test cost-test deploys faults hostile lint format examples fuzz fuzz-database fuzz-model bench audit sbom lock clean
# Tests start many processes; without bytecode, each of them would compile the application.
unexport PYTHONDONTWRITEBYTECODE
# The caller chooses how long these runs take, so their tests have no time limit.
client-test container-test deploys faults fuzz-model: export PYTEST_TIMEOUT ?= 0
# Two runs of pip at the same time corrupt the environment.
.NOTPARALLEL:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile

run: export HOST ?= 127.0.0.1
run: export PORT ?= 8000
run: export AUTH ?= off
run: export WEBHOOKS_ALLOW_PRIVATE ?= 1
run: $(VENV)/run.stamp  ## migrate the database and start web server and worker on http://HOST:PORT (127.0.0.1:8000)
	@if [ -t 1 ]; then export LOG_FORMAT="$${LOG_FORMAT:-console}"; fi; \
	$(PY) -m flask --app wsgi db upgrade && exec $(PY) supervisor.py

# Four processes, because tests also wait; each has its own databases. Selected tests, and tests on a given server, run
# in one process.
test: PROCESSES := $(if $(ARGS)$(TEST_DATABASE_URL),,--numprocesses=4 --dist=worksteal)
test: $(VENV)/dev.stamp  ## run the tests on SQLite and PostgreSQL (ARGS="-k name" selects tests)
	@$(PY) -m pytest $(PROCESSES) $(ARGS)

# Debian installs nginx in a directory that is in the PATH of root only.
nginx-test: export PATH := $(PATH):/usr/sbin
nginx-test: PROCESSES := $(if $(ARGS),,--numprocesses=2 --dist=loadfile)
nginx-test: $(VENV)/dev.stamp  ## test the service behind nginx (apt-get install nginx-light)
	@$(PY) -m pytest tests/nginx $(PROCESSES) $(ARGS)

# Tests of changes and races, except those that count statements or measure lock timeouts, since a pooler changes both.
pgbouncer-test: THROUGH_POOLER := idempotency idempotent_actions order_races order_lifecycle order_patch \
	conditional_changes change_limits batch order_model migrations sequencer event_feed
pgbouncer-test: export PATH := $(PATH):/usr/sbin
pgbouncer-test: $(VENV)/dev.stamp  ## test the service with PgBouncer (apt-get install pgbouncer)
	@$(PY) -m pytest tests/pgbouncer $(ARGS)
	@$(PY) -m tests.pgbouncer.pooler $(PY) -m pytest -k "postgresql and not one_statement and not bounded_time" \
	$(THROUGH_POOLER:%=tests/test_%.py) $(ARGS)

browser-test: $(VENV)/dev.stamp storefront-files  ## test the pages and the storefront example in a browser (apt-get install chromium npm)
	@$(PY) -m pytest tests/browser $(ARGS)

console:  ## build the console into app/static/console (apt-get install npm)
	@cd console && npm ci --silent && npm run --silent build

console-test: console  ## test that the built console in the repository is up to date with console/
	@test -z "$$(git status --porcelain app/static/console)" || \
	{ echo "app/static/console is not up to date: run make console and commit the result." >&2; exit 1; }

screenshots: $(VENV)/dev.stamp  ## take the pictures of the README (apt-get install chromium)
	@$(PY) -m tests.browser.screenshots

node-test: $(VENV)/dev.stamp  ## test the receiver of docs/webhooks.md in Node.js (apt-get install nodejs)
	@$(PY) -m pytest tests/node $(ARGS)

api-lint: $(VENV)/api.stamp  ## check the API description with Redocly and Spectral
	@$(PY) -m pytest tests/api/test_lint.py $(ARGS)

api-test: $(VENV)/api.stamp  ## check the API description, and the clients and the collection generated from it
	@$(PY) -m pytest tests/api --numprocesses=2 $(ARGS)

client-test: PROCESSES := $(if $(ARGS),,--numprocesses=2 --dist=loadfile)
client-test: export CUTS ?= 2000
client-test: $(VENV)/dev.stamp $(CLIENT)/node_modules/.package-lock.json  ## test the clients against the service (apt-get install nodejs npm; CUTS=2000 connections severed)
	@cd $(CLIENT) && rm -rf build dist && npm run --silent build && npm run --silent check-tests
	@$(PY) -m pytest tests/clients $(PROCESSES) $(ARGS)

storefront: storefront-files  ## serve the storefront example on http://127.0.0.1:3000 (apt-get install nodejs npm)
	@echo "Serving on http://127.0.0.1:3000; start the service with CORS_ORIGINS=http://127.0.0.1:3000 make run"
	@$(PYTHON) -m http.server 3000 --bind 127.0.0.1 --directory examples/storefront

storefront-files: $(CLIENT)/node_modules/.package-lock.json
	@cd $(CLIENT) && npm run --silent build && npm run --silent bundle
	@cp $(CLIENT)/dist/order-service-client.js examples/storefront/

client-types: $(VENV)/run.stamp $(CLIENT)/node_modules/.package-lock.json  ## generate the clients' types from the API description
	@LOG_LEVEL=error $(DESCRIBE) > $(CLIENT)/openapi.json
	@cd $(CLIENT) && npm run --silent types -- openapi.json --output src/schema.ts
	@$(MAKE) --no-print-directory python-types; rm $(CLIENT)/openapi.json

python-types: FROM ?= $(CLIENT)/openapi.json
python-types: TO ?= clients/python/order_service_client
python-types: $(VENV)/dev.stamp
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m datamodel_code_generator --input $(FROM) --input-file-type openapi \
	--output $(TO)/documents.py --output-model-type typing.TypedDict --target-python-version 3.11 --use-standard-collections \
	--use-union-operator --disable-timestamp --enum-field-as-literal all --no-use-closed-typed-dict \
	--custom-file-header "# Generated from the API description by make client-types." --formatters ruff-check ruff-format
	@$(PY) clients/python/generate_requests.py $(FROM) $(TO)/requests.py
	@$(PY) clients/python/generate_client.py clients/python/order_service_client/async_client.py $(TO)/client.py
	@$(PY) -m ruff format --quiet --config ruff.toml $(TO)/requests.py $(TO)/client.py

alerts-test:  ## test the alerts of deploy/prometheus with promtool (installs it with apt-get)
	@.ci/need promtool prometheus
	@promtool check config --syntax-only deploy/prometheus/prometheus.yml deploy/prometheus/compose.yml
	@cd deploy/prometheus && promtool check rules rules.yml && promtool test rules rules_test.yml

container-test: export PATH := $(PATH):/usr/sbin
container-test: $(VENV)/dev.stamp  ## test the image of the Dockerfile as root (apt-get install buildah runc debootstrap)
	@$(PY) -m pytest tests/container $(ARGS)

broker-test: $(VENV)/dev.stamp $(VENV)/broker.stamp  ## test publishing to RabbitMQ and Redis (installs them with apt-get)
	@.ci/need rabbitmq-server rabbitmq-server
	@.ci/need redis-server redis-server
	@$(PY) -m pytest tests/broker --numprocesses=2 --dist=loadgroup $(ARGS)

tracing-test: $(VENV)/dev.stamp $(VENV)/tracing.stamp  ## test the OpenTelemetry traces that a collector receives
	@$(PY) -m pytest tests/tracing $(ARGS)

cost-test: $(VENV)/dev.stamp  ## test the number of CPU instructions a request takes (apt-get install valgrind)
	@$(PY) -m pytest tests/cost $(ARGS)

hostile: export PATH := $(PATH):/usr/sbin
hostile: export SECONDS_EACH ?= 5
hostile: $(VENV)/dev.stamp  ## test that the most expensive requests delay no other client (apt-get install nginx-light)
	@$(PY) -m pytest tests/hostile $(ARGS)

deploys: export PATH := $(PATH):/usr/sbin
deploys: $(VENV)/dev.stamp  ## test that deploys lose no request and no delivery (apt-get install nginx-light; RELOADS=30 UPGRADES=30 ROLLS=10 REQUESTS=25000)
	@$(PY) -m pytest tests/deploys --numprocesses=2 --dist=worksteal $(ARGS)

faults: export KILLS ?= 10
faults: $(VENV)/dev.stamp  ## test that failures of servers, databases and disks under load lose nothing acknowledged (KILLS=10, EVENTS=10000 for long runs)
	@$(PY) -m pytest tests/faults --numprocesses=2 --dist=worksteal $(ARGS)

# Prints nothing if all is well. bandit also fails for a comment that suppresses nothing. B101: asserts in app/ are for
# the type checker only; no behaviour depends on them.
lint: $(VENV)/dev.stamp  ## check format, style, types, import layers, security and migrations
	@$(PY) -m ruff format --check --quiet || { echo "Run make format." >&2; exit 1; }
	@$(PY) -m ruff check --quiet
	@$(PY) -m mypy --no-error-summary
	@report=$$($(VENV)/bin/lint-imports --no-logo) || { echo "$$report" >&2; exit 1; }
	@report=$$($(PY) -m bandit --quiet --skip B101 --recursive app 2>&1) && [ -z "$$report" ] || { echo "$$report" >&2; exit 1; }
	@LOG_LEVEL=error $(PY) -m tests.support.migration_lint

format: $(VENV)/dev.stamp  ## format the code and sort the imports
	@$(PY) -m ruff check --quiet --fix --select I
	@$(PY) -m ruff format --quiet

examples: $(VENV)/dev.stamp  ## record the examples of the API description again
	@LOG_LEVEL=error $(PY) -m tests.support.api_examples

fuzz: EXAMPLES ?= 100
fuzz: $(VENV)/dev.stamp  ## send requests generated from the API description, on both databases (EXAMPLES=100 per operation)
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	DATABASE_URL="sqlite:///$$dir/orders.db" $(MAKE) --no-print-directory fuzz-database EXAMPLES=$(EXAMPLES)
	@$(PY) -m tests.support.postgres $(MAKE) --no-print-directory fuzz-database EXAMPLES=$(EXAMPLES)
	@$(MAKE) --no-print-directory fuzz-model MODEL_EXAMPLES=$(EXAMPLES)

# SEED repeats the requests of a run. streamOrderEvents is excluded, since an event stream does not end.
fuzz-database: SCOPES := orders:read events:read orders:write orders:manage payments:write privacy:export privacy:erase webhooks:manage
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
	--header "Authorization: Bearer $$key" --max-examples $(EXAMPLES) $(SEED:%=--seed %) --exclude-operation-id streamOrderEvents

fuzz-model: export MODEL_EXAMPLES ?= 2000
fuzz-model: export TEST_LOG_LEVEL := error
fuzz-model: $(VENV)/dev.stamp  ## compare random sequences of actions with a model, on both databases (MODEL_EXAMPLES=2000 sequences)
	@$(PY) -m pytest tests/test_order_model.py --numprocesses=2 --timeout=0 --capture=no --durations=2 --durations-min=1 $(ARGS)

# A separate environment: the packages of the other frameworks must not affect the tests.
bench: export PATH := $(PATH):/usr/sbin
bench: $(VENV)/bench.stamp  ## benchmark the service and its peers (apt-get install nginx-light wrk; ARGS=--help)
	@$(VENV)/bench/bin/python -m bench.run $(ARGS)

# Node.js comes in a wheel: the tools need a newer version than Debian's.
$(VENV)/api.stamp: export PATH := $(CURDIR)/$(VENV)/api/bin:$(PATH)
$(VENV)/api.stamp: tests/api/requirements.txt tests/api/package-lock.json $(VENV)/dev.stamp
	@echo "Installing tests/api/requirements.txt and tests/api/package.json …"
	@$(PY) -m venv --clear $(VENV)/api
	@$(VENV)/api/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/api/requirements.txt
	@cd tests/api && npm ci --silent
	@touch $@

audit: $(VENV)/dev.stamp  ## check the locked requirements for known vulnerabilities (needs uv; ADVISORIES=all.zip for OSV's copy of them)
	@$(PY) -m tests.support.audit $(ADVISORIES)

sbom: $(VENV)/dev.stamp  ## write the software bill of materials (CycloneDX) to sbom.json
	@$(PY) -m tests.support.sbom > sbom.json

lock:  ## lock requirements*.in in requirements*.txt (ARGS=--upgrade for newer versions; needs uv)
	@for file in requirements requirements-dev requirements-broker requirements-tracing bench/requirements tests/api/requirements; do \
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(ARGS) --output-file $$file.txt $$file.in || exit; done

clean:  ## remove the environment and all caches, but not the database in instance/
	@rm -rf $(VENV) .pytest_cache .mypy_cache .import_linter_cache .hypothesis .schemathesis schemathesis-report
	@rm -rf .coverage .coverage.* htmlcov tests/api/node_modules $(CLIENT)/node_modules $(CLIENT)/build $(CLIENT)/dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CLIENT)/node_modules/.package-lock.json: $(CLIENT)/package-lock.json
	@cd $(CLIENT) && npm ci --ignore-scripts --silent

# venv installs pip last: without pip, the environment is incomplete.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is required, for example: make PYTHON=python3.12 …" >&2; exit 1; }
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

$(VENV)/broker.stamp: requirements-broker.txt $(VENV)/bin/pip
	@echo "Installing requirements-broker.txt into $(VENV) …"
	@$(PIP) -r requirements-broker.txt
	@touch $@

$(VENV)/tracing.stamp: requirements-tracing.txt $(VENV)/bin/pip
	@echo "Installing requirements-tracing.txt into $(VENV) …"
	@$(PIP) -r requirements-tracing.txt
	@touch $@

$(VENV)/bench.stamp: bench/requirements.txt $(VENV)/bin/pip
	@echo "Installing bench/requirements.txt into $(VENV)/bench …"
	@$(PY) -m venv --clear $(VENV)/bench
	@$(VENV)/bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bench/requirements.txt
	@touch $@
