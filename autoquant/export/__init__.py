"""What leaves a run besides the packed file?"""
