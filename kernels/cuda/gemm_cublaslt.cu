#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <string>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_library.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_plain.h"

namespace goldfinch::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what the library's guide advises for Hopper
constexpr size_t kPreparedMax = 4096;                 // shapes differ by their rows alone

// The library's functions, by their names without the prefix.
struct Library {
  decltype(&::cublasLtCreate) Create;
  decltype(&::cublasLtDestroy) Destroy;
  decltype(&::cublasLtGetStatusString) GetStatusString;
  decltype(&::cublasLtMatmul) Matmul;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&::cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&::cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&::cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&::cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&::cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&::cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&::cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
  decltype(&::cublasLtMatrixLayoutSetAttribute) MatrixLayoutSetAttribute;

  absl::Status Load() {
    absl::StatusOr<void*> handle = OpenCudaLibrary(absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR));
    if (!handle.ok()) return handle.status();
    std::string missing;
    const auto load = [&](const char* name, auto* function) {
      *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(*handle, name));
      if (*function == nullptr) missing = name;
    };
    load("cublasLtCreate", &Create);
    load("cublasLtDestroy", &Destroy);
    load("cublasLtGetStatusString", &GetStatusString);
    load("cublasLtMatmul", &Matmul);
    load("cublasLtMatmulAlgoGetHeuristic", &MatmulAlgoGetHeuristic);
    load("cublasLtMatmulDescCreate", &MatmulDescCreate);
    load("cublasLtMatmulDescDestroy", &MatmulDescDestroy);
    load("cublasLtMatmulDescSetAttribute", &MatmulDescSetAttribute);
    load("cublasLtMatmulPreferenceCreate", &MatmulPreferenceCreate);
    load("cublasLtMatmulPreferenceDestroy", &MatmulPreferenceDestroy);
    load("cublasLtMatmulPreferenceSetAttribute", &MatmulPreferenceSetAttribute);
    load("cublasLtMatrixLayoutCreate", &MatrixLayoutCreate);
    load("cublasLtMatrixLayoutDestroy", &MatrixLayoutDestroy);
    load("cublasLtMatrixLayoutSetAttribute", &MatrixLayoutSetAttribute);
    if (missing.empty()) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR, " has no ", missing));
  }
};

cudaDataType TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF16:
      return CUDA_R_16F;
    default:
      GF_CHECK(dtype == DType::kBf16) << Name(dtype);
      return CUDA_R_16BF;
  }
}

// What the choice of an algorithm depends on: shapes, types, and how addresses are aligned.
using Key = std::array<int64_t, 17>;
struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0;
    for (const int64_t part : key) {
      hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

// The largest power of two up to 256 that divides the address.
uint32_t AlignmentOf(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

class CublasLtGemm : public GemmRunner {
 public:
  explicit CublasLtGemm(Runtime& runtime) : runtime_(runtime) {}
  ~CublasLtGemm() override {
    Forget();
    if (handle_ != nullptr) library_.Destroy(handle_);
  }

  absl::Status Open() {
    if (absl::Status status = library_.Load(); !status.ok()) return status;
    if (const cublasStatus_t status = library_.Create(&handle_); status != CUBLAS_STATUS_SUCCESS) {
      return absl::UnavailableError(absl::StrCat("cuBLASLt cannot be used: ", library_.GetStatusString(status)));
    }
    absl::StatusOr<std::shared_ptr<void>> workspace = runtime_.Allocate(kWorkspaceBytes, "workspace of cuBLASLt");
    if (!workspace.ok()) return workspace.status();
    workspace_ = *std::move(workspace);
    return absl::OkStatus();
  }

  void Run(const Gemm& gemm) override {
    if (gemm.rows == 0 || gemm.columns == 0 || gemm.batch == 0) return;
    const auto stream = static_cast<cudaStream_t>(runtime_.stream());
    const Prepared& product = PreparedFor(gemm);
    if (product.plain) return RunPlainGemm(stream, gemm);
    if (gemm.bias != nullptr) {
      Check(library_.MatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &gemm.bias,
                                            sizeof(gemm.bias)),
            gemm);
    }
    const float alpha = 1, beta = gemm.accumulate ? 1 : 0;
    Check(library_.Matmul(handle_, product.operation, &alpha, gemm.weight, product.weight, gemm.x, product.x, &beta,
                          gemm.out, product.out, gemm.out, product.out, &product.algorithm, workspace_.get(),
                          kWorkspaceBytes, stream),
          gemm);
  }

 private:
  struct Prepared {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t weight = nullptr;
    cublasLtMatrixLayout_t x = nullptr;
    cublasLtMatrixLayout_t out = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
    bool plain = false;  // the library has no kernel for it
  };

  // A failure means wrong arguments, unless the device has failed already.
  void Check(cublasStatus_t status, const Gemm& gemm) const {
    if (status == CUBLAS_STATUS_SUCCESS || !runtime_.Synchronize().ok()) return;
    GF_CHECK(false) << "cuBLASLt: " << library_.GetStatusString(status) << ", rows " << gemm.rows << ", columns "
                    << gemm.columns << ", inner " << gemm.inner << ", " << Name(gemm.in_dtype) << " to "
                    << Name(gemm.out_dtype);
  }

  void Forget() {
    for (auto& [key, product] : prepared_) {
      if (product.operation != nullptr) library_.MatmulDescDestroy(product.operation);
      for (cublasLtMatrixLayout_t layout : {product.weight, product.x, product.out}) {
        if (layout != nullptr) library_.MatrixLayoutDestroy(layout);
      }
    }
    prepared_.clear();
  }

  cublasLtMatrixLayout_t Layout(const Gemm& gemm, DType dtype, int64_t rows, int64_t columns, int64_t ld,
                                int64_t stride) const {
    cublasLtMatrixLayout_t layout = nullptr;
    Check(library_.MatrixLayoutCreate(&layout, TypeOf(dtype), rows, columns, ld), gemm);
    if (gemm.batch > 1) {
      const auto count = static_cast<int32_t>(gemm.batch);
      Check(library_.MatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)), gemm);
      Check(library_.MatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                              sizeof(stride)),
            gemm);
    }
    return layout;
  }

  // The library's matrices are column-major. It computes out^T = weight^T x^T, and a row-major matrix is the transpose
  // of a column-major one.
  const Prepared& PreparedFor(const Gemm& g) {
    GF_CHECK(g.out_dtype == g.in_dtype || g.out_dtype == DType::kF32);
    GF_CHECK(g.bias == nullptr || g.out_dtype == DType::kF32);
    const uint32_t alignments[] = {AlignmentOf(g.weight), AlignmentOf(g.x), AlignmentOf(g.out)};
    const Key key = {static_cast<int64_t>(g.in_dtype),
                     static_cast<int64_t>(g.out_dtype),
                     g.bias != nullptr,
                     g.out_in,
                     g.rows,
                     g.columns,
                     g.inner,
                     g.ldx,
                     g.ldweight,
                     g.ldout,
                     g.batch,
                     g.x_stride,
                     g.weight_stride,
                     g.out_stride,
                     alignments[0],
                     alignments[1],
                     alignments[2]};
    if (const auto found = prepared_.find(key); found != prepared_.end()) return found->second;
    if (prepared_.size() >= kPreparedMax) Forget();
    Prepared& product = prepared_[key];
    Check(library_.MatmulDescCreate(&product.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), g);
    const cublasOperation_t transpose = g.out_in ? CUBLAS_OP_T : CUBLAS_OP_N;
    Check(
        library_.MatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)),
        g);
    if (g.bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      Check(library_.MatmulDescSetAttribute(product.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                            sizeof(epilogue)),
            g);
    }
    product.weight = g.out_in ? Layout(g, g.in_dtype, g.inner, g.columns, g.ldweight, g.weight_stride)
                              : Layout(g, g.in_dtype, g.columns, g.inner, g.ldweight, g.weight_stride);
    product.x = Layout(g, g.in_dtype, g.inner, g.rows, g.ldx, g.x_stride);
    product.out = Layout(g, g.out_dtype, g.columns, g.rows, g.ldout, g.out_stride);

    cublasLtMatmulPreference_t preference = nullptr;
    Check(library_.MatmulPreferenceCreate(&preference), g);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      Check(library_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)), g);
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments[0]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments[1]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments[2]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments[2]);
    // Partial sums must be fp32 too.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const cublasStatus_t status = library_.MatmulAlgoGetHeuristic(handle_, product.operation, product.weight, product.x,
                                                                  product.out, product.out, preference,
                                                                  /*requestedAlgoCount=*/1, &result, &found);
    library_.MatmulPreferenceDestroy(preference);
    product.plain = status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && found == 0);
    if (!product.plain) Check(status, g);
    product.algorithm = result.algo;
    return product;
  }

  Runtime& runtime_;
  Library library_ = {};
  cublasLtHandle_t handle_ = nullptr;
  std::shared_ptr<void> workspace_;
  std::unordered_map<Key, Prepared, KeyHash> prepared_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GemmRunner>> MakeGemmRunner(Runtime& runtime) {
  auto gemm = std::make_unique<CublasLtGemm>(runtime);
  absl::Status status = gemm->Open();
  if (!status.ok()) return status;
  return gemm;
}

}  // namespace goldfinch::cuda
