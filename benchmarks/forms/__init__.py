"""What the compositions beside an operator are made of; each is put together in the operator's own file."""
