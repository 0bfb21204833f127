"""From rows and findings to what people look at."""
