"""One device made of several: each model's layers are shared out between them."""
