// Bindings of the sampling operators.
#include "bindings/bindings.h"
#include "resample/params.h"

namespace showo {
namespace {

// The number, or the tensor that stands for it; its stride is 1 where every row has an entry of its own.
Fields scalar_or_rows(const std::string& name, ScalarOrRows<int64_t>& x) {
  return {{name.c_str(), x.value}, {(name + "_data").c_str(), x.data}, {(name + "_stride").c_str(), x.stride}};
}

// The number, or the tensor [1] that holds it.
template <class T>
Fields scalar(const std::string& name, Scalar<T>& x) {
  return {{name.c_str(), x.value}, {(name + "_data").c_str(), x.data}};
}

Fields noise_fields(NoiseSource& source) {
  return scalar_or_rows("seed", source.seed) + scalar("step", source.step) + Fields{{"noise", source.uniforms}};
}

Fields sample_fields(SampleParams& p) {
  return noise_fields(p.noise) + scalar("guidance", p.guidance) + scalar("temperature", p.temperature) +
         scalar("top_k", p.top_k) + scalar("top_p", p.top_p) +
         Fields{{"logprob", p.logprob},
                {"cond", p.cond},
                {"uncond", p.uncond},
                {"dtype", p.dtype},
                {"batch", p.batch},
                {"length", p.length},
                {"vocab", p.vocab},
                {"cond_stride_b", p.cond_stride_b},
                {"cond_stride_n", p.cond_stride_n},
                {"uncond_stride_b", p.uncond_stride_b},
                {"uncond_stride_n", p.uncond_stride_n},
                {"weights", p.weights},
                {"weights_stride_b", p.weights_stride_b},
                {"conditions", p.conditions},
                {"cond_stride_k", p.cond_stride_k}};
}

Fields sample_tokens_fields(SampleParams& p) { return sample_fields(p) + Fields{{"ids", p.ids}}; }

Fields remask_fields(RemaskParams& p) {
  return noise_fields(p.noise) + scalar_or_rows("mask_len", p.mask_len) + scalar("temperature", p.temperature) +
         Fields{{"ids_out", p.ids_out},   {"masked", p.masked}, {"ids", p.ids},       {"logprob", p.logprob},
                {"known", p.known.flags}, {"batch", p.batch},   {"length", p.length}, {"mask_id", p.mask_id}};
}

struct ResampleParams {
  SampleParams sample;
  RemaskParams remask;
};

Fields resample_fields(ResampleParams& p) {
  SampleParams& sample = p.sample;
  RemaskParams& remask = p.remask;
  return sample_fields(sample) + scalar_or_rows("mask_len", remask.mask_len) +
         scalar("remask_temperature", remask.temperature) +
         Fields{{"sampled", sample.ids},       {"canvas", sample.canvas},
                {"known", sample.known.flags}, {"mask_id", sample.known.mask_id},
                {"offset", sample.offset},     {"ids_out", remask.ids_out},
                {"masked", remask.masked},     {"remask_noise", remask.noise.uniforms}};
}

// What sampling and remasking have in common is an argument once, and goes to both.
template <class Place, Status (*launcher)(const SampleParams&, const RemaskParams&, Place)>
Status resample(const ResampleParams& params, Place place) {
  SampleParams sample = params.sample;
  sample.known.ids = sample.canvas;
  RemaskParams remask = params.remask;
  remask.ids = sample.ids;
  remask.logprob = sample.logprob;
  remask.known = sample.known;
  remask.noise.seed = sample.noise.seed;
  remask.noise.step = sample.noise.step;
  remask.batch = sample.batch;
  remask.length = sample.length;
  remask.mask_id = sample.known.mask_id;
  return launcher(sample, remask, place);
}

Fields corrupt_tokens_fields(CorruptParams& p) {
  return noise_fields(p.noise) + scalar("mask_ratio", p.ratio) +
         Fields{{"inputs", p.inputs}, {"labels", p.labels}, {"masked", p.masked},      {"ids", p.ids},
                {"batch", p.batch},   {"length", p.length}, {"mask_ratios", p.ratios}, {"mask_id", p.mask_id}};
}

struct PhiloxParams {
  float* out;
  int64_t count;
  uint32_t first_block;
  PhiloxRow row;
};

Fields philox_fields(PhiloxParams& p) {
  return {{"out", p.out},
          {"count", p.count},
          {"first_block", p.first_block},
          {"position", p.row.position},
          {"step", p.row.step},
          {"stream_row", p.row.stream_row},
          {"key0", p.row.key0},
          {"key1", p.row.key1}};
}

Status philox_uniforms(const PhiloxParams& p, int) {  // a few numbers: on this thread
  return philox_uniforms_cpu(p.row, p.first_block, p.count, p.out);
}

}  // namespace

SHOWO_BINDINGS(m) {
  def_launcher(m, "sample_tokens_cpu", sample_tokens_fields, sample_tokens_cpu);
  def_launcher(m, "remask_cpu", remask_fields, remask_cpu);
  def_launcher(m, "resample_cpu", resample_fields, resample<int, resample_cpu>);
  def_launcher(m, "corrupt_tokens_cpu", corrupt_tokens_fields, corrupt_tokens_cpu);
#if defined(SHOWO_HAS_CUDA)
  def_launcher(m, "sample_tokens_cuda", sample_tokens_fields, sample_tokens_cuda);
  def_launcher(m, "remask_cuda", remask_fields, remask_cuda);
  def_launcher(m, "resample_cuda", resample_fields, resample<void*, resample_cuda>);
  def_launcher(m, "corrupt_tokens_cuda", corrupt_tokens_fields, corrupt_tokens_cuda);
#endif
  def_launcher(m, "philox_uniforms_cpu", philox_fields, philox_uniforms);
}

}  // namespace showo
