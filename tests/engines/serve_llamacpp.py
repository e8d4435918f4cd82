"""llama.cpp's server, in the environment of xllamacpp: MODEL PORT [--embeddings]. It runs until it is killed."""

import sys
import time

import xllamacpp  # type: ignore[import-not-found]

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames, params.port = ["127.0.0.1"], int(sys.argv[2])
params.n_parallel, params.n_ctx = 4, 4 * 2048
params.n_gpu_layers, params.warmup, params.cpuparams.n_threads = 0, False, 2
if "--embeddings" in sys.argv:
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
