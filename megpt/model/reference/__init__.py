"""Import of R2GenGPT's and the MeGPT reference's .pth files."""
