"""Diffusion in one parametrisation: the denoiser D(x; sigma) = E[x_0 | x_0 + sigma z = x]."""
