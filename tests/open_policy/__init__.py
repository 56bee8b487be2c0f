"""Storage with one policy left open, to prove that a check of the policies finds it."""
