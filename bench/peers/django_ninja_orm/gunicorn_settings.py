"""gunicorn as Django's users run it: processes with threads, each thread with its own connection to the database."""

import os

bind = os.environ["BIND"]
workers = int(os.environ["WEB_CONCURRENCY"])
worker_class = "gthread"
threads = 8
keepalive = 75
control_socket_disable = True
