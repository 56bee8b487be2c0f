"""The paths of the web app that came before, as its browser frontend knows them."""
