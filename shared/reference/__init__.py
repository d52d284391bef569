"""Pages of ``docs/reference`` that are made from the code: ``python -m shared.reference`` writes them again."""
