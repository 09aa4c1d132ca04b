"""The whole flow on drawn films: the job, the two stages that only it has, and what each stage costs."""
