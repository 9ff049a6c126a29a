"""Time and memory of a bundle's components, beside what others make of the same checkpoint."""
