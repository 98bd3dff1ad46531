import click


@click.command()
def seed() -> None:
    """x"""
