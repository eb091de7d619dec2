"""The learning benchmark: what CoreModel learns and remembers, beside baselines of its own size."""
