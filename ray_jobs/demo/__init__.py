"""The whole flow on drawn films: the job, and the two stages that only it has."""
