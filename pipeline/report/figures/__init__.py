"""The figures of the report: PNG, SVG and, for most, a chart. Their bytes depend only on the results."""
