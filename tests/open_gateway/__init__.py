"""The gateway with one look at whose thing it is about left out, to prove that a walk finds it."""
