"""The report's figures, as files whose bytes depend on the results alone: PNG, SVG, and a chart where there is one."""
