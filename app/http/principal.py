"""Who asks."""

ANONYMOUS = "anonymous"


def current_principal() -> str:
    """The principal of the request: keys and references are its own. Without authentication there is one for all."""
    return ANONYMOUS
