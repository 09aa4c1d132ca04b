"""Import of .pth files of R2GenGPT and of the MeGPT reference."""
