"""Pictures of the data engines: decoded in a process of their own, compared, embedded, classed."""
