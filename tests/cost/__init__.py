"""What a request costs, in instructions. `make cost-test` runs it: it needs valgrind."""
