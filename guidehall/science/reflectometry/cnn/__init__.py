"""Networks of the package pyreflect: trained, imported, exported and served here."""
