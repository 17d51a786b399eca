"""How the zoo's models learn: one trainer for all of them."""
