"""HTTP endpoints: a view reads its input, calls one service and returns its response."""
