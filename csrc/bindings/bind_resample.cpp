// Bindings of the sampling operators. Every launcher exists twice, for the CPU and for CUDA; the arguments differ in
// the last alone, `Place`: the number of threads, or the stream.
#include "bindings/bindings.h"
#include "resample/params.h"

namespace py = pybind11;

namespace showo {
namespace {

ScalarOrRows scalar_or_rows(uintptr_t data, int64_t value, int64_t stride) {
  return ScalarOrRows{as_pointer<const int64_t>(data), value, stride};
}

NoiseSource noise_source(uintptr_t noise, int64_t seed, uintptr_t seed_data, int64_t seed_stride, int64_t step,
                         uintptr_t step_data) {
  NoiseSource source;
  source.uniforms = as_pointer<const float>(noise);
  source.seed = scalar_or_rows(seed_data, seed, seed_stride);
  source.step = scalar_or_rows(step_data, step, 0);
  return source;
}

SampleParams sample_params(uintptr_t ids, uintptr_t logprob, uintptr_t cond, uintptr_t uncond, int dtype, int64_t batch,
                           int64_t length, int64_t vocab, int64_t cond_stride_b, int64_t cond_stride_n,
                           int64_t uncond_stride_b, int64_t uncond_stride_n, double cond_scale, double uncond_scale,
                           double temperature, int64_t top_k, double top_p, const NoiseSource& noise) {
  SampleParams p;
  p.ids = as_pointer<int64_t>(ids);
  p.logprob = as_pointer<float>(logprob);
  p.cond = as_pointer<const void>(cond);
  p.uncond = as_pointer<const void>(uncond);
  p.dtype = static_cast<DType>(dtype);
  p.batch = batch;
  p.length = length;
  p.vocab = vocab;
  p.cond_stride_b = cond_stride_b;
  p.cond_stride_n = cond_stride_n;
  p.uncond_stride_b = uncond_stride_b;
  p.uncond_stride_n = uncond_stride_n;
  p.cond_scale = static_cast<float>(cond_scale);
  p.uncond_scale = static_cast<float>(uncond_scale);
  p.temperature = temperature;
  p.top_k = top_k;
  p.top_p = top_p;
  p.noise = noise;
  return p;
}

using py::arg;

int place_of(int num_threads) { return num_threads; }
void* place_of(uintptr_t stream) { return as_pointer(stream); }

template <class Place, class Launcher>
void def_sample_tokens(py::module_& m, const char* name, const char* last, Launcher launcher) {
  m.def(
      name,
      [launcher](uintptr_t ids, uintptr_t logprob, uintptr_t cond, uintptr_t uncond, int dtype, int64_t batch,
                 int64_t length, int64_t vocab, int64_t cond_stride_b, int64_t cond_stride_n, int64_t uncond_stride_b,
                 int64_t uncond_stride_n, double cond_scale, double uncond_scale, double temperature, int64_t top_k,
                 double top_p, uintptr_t noise, int64_t seed, uintptr_t seed_data, int64_t seed_stride, int64_t step,
                 uintptr_t step_data, Place place) {
        const SampleParams p =
            sample_params(ids, logprob, cond, uncond, dtype, batch, length, vocab, cond_stride_b, cond_stride_n,
                          uncond_stride_b, uncond_stride_n, cond_scale, uncond_scale, temperature, top_k, top_p,
                          noise_source(noise, seed, seed_data, seed_stride, step, step_data));
        launch([&] { return launcher(p, place_of(place)); });
      },
      py::kw_only(), arg("ids"), arg("logprob"), arg("cond"), arg("uncond"), arg("dtype"), arg("batch"), arg("length"),
      arg("vocab"), arg("cond_stride_b"), arg("cond_stride_n"), arg("uncond_stride_b"), arg("uncond_stride_n"),
      arg("cond_scale"), arg("uncond_scale"), arg("temperature"), arg("top_k"), arg("top_p"), arg("noise"), arg("seed"),
      arg("seed_data"), arg("seed_stride"), arg("step"), arg("step_data"), arg(last));
}

template <class Place, class Launcher>
void def_remask(py::module_& m, const char* name, const char* last, Launcher launcher) {
  m.def(
      name,
      [launcher](uintptr_t ids_out, uintptr_t masked, uintptr_t ids, uintptr_t logprob, uintptr_t known, int64_t batch,
                 int64_t length, int64_t mask_len, uintptr_t mask_len_data, int64_t mask_len_stride, double temperature,
                 int64_t mask_id, uintptr_t noise, int64_t seed, uintptr_t seed_data, int64_t seed_stride, int64_t step,
                 uintptr_t step_data, Place place) {
        RemaskParams p;
        p.ids_out = as_pointer<int64_t>(ids_out);
        p.masked = as_pointer<bool>(masked);
        p.ids = as_pointer<const int64_t>(ids);
        p.logprob = as_pointer<const float>(logprob);
        p.known.flags = as_pointer<const bool>(known);
        p.batch = batch;
        p.length = length;
        p.mask_len = scalar_or_rows(mask_len_data, mask_len, mask_len_stride);
        p.temperature = temperature;
        p.mask_id = mask_id;
        p.noise = noise_source(noise, seed, seed_data, seed_stride, step, step_data);
        launch([&] { return launcher(p, place_of(place)); });
      },
      py::kw_only(), arg("ids_out"), arg("masked"), arg("ids"), arg("logprob"), arg("known"), arg("batch"),
      arg("length"), arg("mask_len"), arg("mask_len_data"), arg("mask_len_stride"), arg("temperature"), arg("mask_id"),
      arg("noise"), arg("seed"), arg("seed_data"), arg("seed_stride"), arg("step"), arg("step_data"), arg(last));
}

template <class Place, class Launcher>
void def_resample(py::module_& m, const char* name, const char* last, Launcher launcher) {
  m.def(
      name,
      [launcher](uintptr_t ids_out, uintptr_t masked, uintptr_t sampled, uintptr_t logprob, uintptr_t canvas,
                 uintptr_t known, int64_t mask_len, uintptr_t mask_len_data, int64_t mask_len_stride, int64_t mask_id,
                 int64_t offset, double remask_temperature, uintptr_t remask_noise, uintptr_t cond, uintptr_t uncond,
                 int dtype, int64_t batch, int64_t length, int64_t vocab, int64_t cond_stride_b, int64_t cond_stride_n,
                 int64_t uncond_stride_b, int64_t uncond_stride_n, double cond_scale, double uncond_scale,
                 double temperature, int64_t top_k, double top_p, uintptr_t noise, int64_t seed, uintptr_t seed_data,
                 int64_t seed_stride, int64_t step, uintptr_t step_data, Place place) {
        SampleParams p =
            sample_params(sampled, logprob, cond, uncond, dtype, batch, length, vocab, cond_stride_b, cond_stride_n,
                          uncond_stride_b, uncond_stride_n, cond_scale, uncond_scale, temperature, top_k, top_p,
                          noise_source(noise, seed, seed_data, seed_stride, step, step_data));
        p.canvas = as_pointer<const int64_t>(canvas);
        p.known.flags = as_pointer<const bool>(known);
        p.known.ids = p.canvas;
        p.known.mask_id = mask_id;
        p.offset = offset;
        RemaskParams r;
        r.ids_out = as_pointer<int64_t>(ids_out);
        r.masked = as_pointer<bool>(masked);
        r.ids = p.ids;
        r.logprob = p.logprob;
        r.known = p.known;
        r.mask_len = scalar_or_rows(mask_len_data, mask_len, mask_len_stride);
        r.noise = p.noise;
        r.noise.uniforms = as_pointer<const float>(remask_noise);
        r.batch = batch;
        r.length = length;
        r.temperature = remask_temperature;
        r.mask_id = mask_id;
        launch([&] { return launcher(p, r, place_of(place)); });
      },
      py::kw_only(), arg("ids_out"), arg("masked"), arg("sampled"), arg("logprob"), arg("canvas"), arg("known"),
      arg("mask_len"), arg("mask_len_data"), arg("mask_len_stride"), arg("mask_id"), arg("offset"),
      arg("remask_temperature"), arg("remask_noise"), arg("cond"), arg("uncond"), arg("dtype"), arg("batch"),
      arg("length"), arg("vocab"), arg("cond_stride_b"), arg("cond_stride_n"), arg("uncond_stride_b"),
      arg("uncond_stride_n"), arg("cond_scale"), arg("uncond_scale"), arg("temperature"), arg("top_k"), arg("top_p"),
      arg("noise"), arg("seed"), arg("seed_data"), arg("seed_stride"), arg("step"), arg("step_data"), arg(last));
}

template <class Place, class Launcher>
void def_corrupt_tokens(py::module_& m, const char* name, const char* last, Launcher launcher) {
  m.def(
      name,
      [launcher](uintptr_t inputs, uintptr_t labels, uintptr_t masked, uintptr_t ids, int64_t batch, int64_t length,
                 double mask_ratio, uintptr_t mask_ratios, int64_t mask_id, uintptr_t noise, int64_t seed,
                 uintptr_t seed_data, int64_t seed_stride, int64_t step, uintptr_t step_data, Place place) {
        CorruptParams p;
        p.inputs = as_pointer<int64_t>(inputs);
        p.labels = as_pointer<int64_t>(labels);
        p.masked = as_pointer<bool>(masked);
        p.ids = as_pointer<const int64_t>(ids);
        p.batch = batch;
        p.length = length;
        p.ratio = mask_ratio;
        p.ratios = as_pointer<const float>(mask_ratios);
        p.mask_id = mask_id;
        p.noise = noise_source(noise, seed, seed_data, seed_stride, step, step_data);
        launch([&] { return launcher(p, place_of(place)); });
      },
      py::kw_only(), arg("inputs"), arg("labels"), arg("masked"), arg("ids"), arg("batch"), arg("length"),
      arg("mask_ratio"), arg("mask_ratios"), arg("mask_id"), arg("noise"), arg("seed"), arg("seed_data"),
      arg("seed_stride"), arg("step"), arg("step_data"), arg(last));
}

void philox_uniforms(uintptr_t out, int64_t count, uint32_t first_block, uint32_t position, uint32_t step,
                     uint32_t stream_row, uint32_t key0, uint32_t key1) {
  const PhiloxRow row{key0, key1, position, step, stream_row};
  launch([&] { return philox_uniforms_cpu(row, first_block, count, as_pointer<float>(out)); });
}

}  // namespace

void bind_resample(py::module_& m) {
  def_sample_tokens<int>(m, "sample_tokens_cpu", "num_threads", &sample_tokens_cpu);
  def_remask<int>(m, "remask_cpu", "num_threads", &remask_cpu);
  def_resample<int>(m, "resample_cpu", "num_threads", &resample_cpu);
  def_corrupt_tokens<int>(m, "corrupt_tokens_cpu", "num_threads", &corrupt_tokens_cpu);
  m.def("philox_uniforms_cpu", &philox_uniforms, py::kw_only(), arg("out"), arg("count"), arg("first_block"),
        arg("position"), arg("step"), arg("stream_row"), arg("key0"), arg("key1"));
#if defined(SHOWO_HAS_CUDA)
  def_sample_tokens<uintptr_t>(m, "sample_tokens_cuda", "stream", &sample_tokens_cuda);
  def_remask<uintptr_t>(m, "remask_cuda", "stream", &remask_cuda);
  def_resample<uintptr_t>(m, "resample_cuda", "stream", &resample_cuda);
  def_corrupt_tokens<uintptr_t>(m, "corrupt_tokens_cuda", "stream", &corrupt_tokens_cuda);
#endif
}

}  // namespace showo
