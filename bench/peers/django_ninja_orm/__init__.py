"""Django Ninja with Django's ORM: `manage` is its command, `wsgi` what gunicorn serves."""
