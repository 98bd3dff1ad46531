"""One of a thing for each database that this process works with: in tests there are several."""

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from app.db.engine import db

Thing = TypeVar("Thing")


class PerDatabase(Generic[Thing]):
    """Makes the thing when it is first asked for, and forgets it with the database's engine."""

    def __init__(self, make: Callable[[], Thing]) -> None:
        self._make = make
        self._things: WeakKeyDictionary[Engine, Thing] = WeakKeyDictionary()

    def get(self) -> Thing:
        """The current application's."""
        engine = db.engine
        thing = self._things.get(engine)
        return self._things.setdefault(engine, self._make()) if thing is None else thing
