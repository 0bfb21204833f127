"""From pre-activations to counts of the units that switch."""
