"""The report: a sweep's ledger as one page, with twins in Markdown and JSON."""
