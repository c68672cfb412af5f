"""Where frames come from. A new source is one file and one entry point of group `tidegate.sources`.

base    what a source is, and how one is found          images   a folder of image files
                                                        idx      an archive as MNIST has
"""
