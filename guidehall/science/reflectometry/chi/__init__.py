"""Interaction parameters (chi) from SLD profiles: an autoencoder and a perceptron on its latent space."""
