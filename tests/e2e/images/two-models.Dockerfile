# The worker with a second model, whose answers differ from those of the first.
ARG BASE
FROM ${BASE}
USER 0
RUN cp -r /models/stdlib-llama /models/other-llama \
 && python3 -c "from safetensors.torch import load_file, save_file; \
path = '/models/other-llama/model.safetensors'; tensors = load_file(path); \
tensors['model.norm.weight'].neg_(); save_file(tensors, path)" \
 && chmod -R a+rX /models/other-llama
USER 65532:65532
