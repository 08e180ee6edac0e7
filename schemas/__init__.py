"""What goes in and what comes out: contracts, parameters, errors. No Beam, no JAX."""
