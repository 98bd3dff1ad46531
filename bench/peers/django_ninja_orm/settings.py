"""Django's settings: nothing that an API without sessions does not need."""

import os

from sqlalchemy.engine import make_url

_url = make_url(os.environ["DATABASE_URL"])

SECRET_KEY = "bench"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "bench.peers.django_ninja_orm.api"
INSTALLED_APPS = ["bench.peers.django_ninja_orm"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.database,
        "USER": _url.username,
        "HOST": _url.query.get("host", _url.host),
        "PORT": _url.query.get("port", _url.port),
        "CONN_MAX_AGE": None,  # a connection a thread, kept
    }
}
