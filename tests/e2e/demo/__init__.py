"""The whole loop on a simulated robot: record, learn, drive. `python -m tests.e2e.demo` or `make demo`."""
