"""Django's command line: `python -m bench.peers.django_ninja_orm.manage migrate --run-syncdb`."""

import os
import sys

from django.core.management import execute_from_command_line

os.environ["DJANGO_SETTINGS_MODULE"] = "bench.peers.django_ninja_orm.settings"

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
