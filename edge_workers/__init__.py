"""Where data is born: sources, the producer, inference at the edge, and the site's two ends of the WAN.

sources/    where frames come from                       preprocess   a frame to the payload that travels
producer    captures frames: seq, position and record    inference    answers, or sends on, what was captured
settler     one outcome an item                          uplink, downlink   to the cloud and back, exactly once
"""
