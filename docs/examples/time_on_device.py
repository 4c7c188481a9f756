"""A command for --target cmd: time an ONNX file and print milliseconds, one number a line.

For a real device, copy the file there (adb push, scp) and time it with the runtime of the device.
"""

import os
import sys
import time

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ["KDSEARCH_THREADS"])
session = onnxruntime.InferenceSession(sys.argv[-1], options, providers=["CPUExecutionProvider"])
channels, height, width = map(int, os.environ["KDSEARCH_INPUT"].split("x"))
shape = (int(os.environ["KDSEARCH_BATCH"]), channels, height, width)
images = {session.get_inputs()[0].name: np.zeros(shape, np.float32)}
for _ in range(20):
    session.run(None, images)
for _ in range(50):
    started = time.perf_counter()
    session.run(None, images)
    print(1e3 * (time.perf_counter() - started))
