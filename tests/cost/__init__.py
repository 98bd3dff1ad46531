"""The number of CPU instructions of requests. `make cost-test` runs these tests, which need valgrind."""
