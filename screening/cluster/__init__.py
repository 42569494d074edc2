"""The one place that knows Dask: how to get a client, and how to work off tasks with it."""
