"""Networks F(x, c_noise). They know nothing of sigma."""
