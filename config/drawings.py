# FILL
out_dir = 'out/drawings'
