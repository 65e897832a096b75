"""nfe-bench: what each design choice of a diffusion model buys at each number of function evaluations."""
