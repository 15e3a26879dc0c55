// The models below a directory, run by the C library of TensorFlow's wheel: one session each, one thread per operation.
//
// The library is opened at run time and looks for its symbols in itself first: it holds another protobuf than the
// server's. A model has one float input and one float output, as the models of benchmarks/models.py have.
#pragma once

#include <dlfcn.h>
#include <tensorflow/c/c_api.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct TensorFlow {
  explicit TensorFlow(const std::string& library)
      : handle(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND)) {
    if (handle == nullptr) throw std::runtime_error(dlerror());
  }
  template <typename Function>
  void find(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) throw std::runtime_error(dlerror());
  }
  void* handle;
};

// What the server needs of the C API.
#define TF_FUNCTIONS(X)                                                                                          \
  X(TF_NewStatus) X(TF_GetCode) X(TF_Message) X(TF_DeleteStatus) X(TF_NewSessionOptions) X(TF_SetConfig) X(TF_NewGraph) \
  X(TF_LoadSessionFromSavedModel) X(TF_GraphOperationByName) X(TF_AllocateTensor) X(TF_TensorData) X(TF_SessionRun)     \
  X(TF_TensorByteSize) X(TF_NumDims) X(TF_Dim) X(TF_DeleteTensor)
#define DECLARE(name) inline decltype(&::name) p##name;
TF_FUNCTIONS(DECLARE)
#undef DECLARE

inline void open_tensorflow(const std::string& library) {
  static TensorFlow tensorflow(library);
#define FIND(name) tensorflow.find(p##name, #name);
  TF_FUNCTIONS(FIND)
#undef FIND
}

// A failed call of TensorFlow, or a request that fits no model.
struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Status {
  TF_Status* it = pTF_NewStatus();
  ~Status() { pTF_DeleteStatus(it); }
  void check() const {
    if (pTF_GetCode(it) != TF_OK) throw Failed(pTF_Message(it));
  }
};

struct DeleteTensor {
  void operator()(TF_Tensor* tensor) const { pTF_DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<TF_Tensor, DeleteTensor>;

inline Tensor new_tensor(const std::vector<int64_t>& shape) {
  size_t size = sizeof(float);
  for (int64_t dim : shape) size *= dim;
  return Tensor(pTF_AllocateTensor(TF_FLOAT, shape.data(), static_cast<int>(shape.size()), size));
}

inline float* values(const Tensor& tensor) { return static_cast<float*>(pTF_TensorData(tensor.get())); }

inline size_t count(const Tensor& tensor) { return pTF_TensorByteSize(tensor.get()) / sizeof(float); }

class Model {
 public:
  // `input` and `output` are names in the graph, such as serving_default_x:0.
  Model(const std::string& directory, const std::string& input, const std::string& output) {
    TF_SessionOptions* options = pTF_NewSessionOptions();
    // ConfigProto: intra_op_parallelism_threads = 1, inter_op_parallelism_threads = -1, which is the caller's thread.
    const char config[] = "\x10\x01\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    Status status;
    pTF_SetConfig(options, config, sizeof config - 1, status.it);
    status.check();
    graph_ = pTF_NewGraph();
    const char* tags[] = {"serve"};
    session_ = pTF_LoadSessionFromSavedModel(options, nullptr, directory.c_str(), tags, 1, graph_, nullptr, status.it);
    status.check();
    input_ = find(input);
    output_ = find(output);
  }

  Tensor run(const Tensor& input) const {
    TF_Tensor* in = input.get();
    TF_Tensor* out = nullptr;
    Status status;
    pTF_SessionRun(session_, nullptr, &input_, &in, 1, &output_, &out, 1, nullptr, 0, nullptr, status.it);
    status.check();
    return Tensor(out);
  }

 private:
  TF_Output find(const std::string& name) const {
    size_t colon = name.find(':');
    TF_Operation* operation = pTF_GraphOperationByName(graph_, name.substr(0, colon).c_str());
    if (operation == nullptr) throw std::runtime_error("the graph has no operation " + name);
    return {operation, std::stoi(name.substr(colon + 1))};
  }

  TF_Graph* graph_;
  TF_Session* session_;
  TF_Output input_, output_;
};

using Models = std::map<std::string, std::unique_ptr<Model>, std::less<>>;

// Arguments: the library, then for each model its name, directory, input and output.
inline Models load_models(int argc, char** argv) {
  open_tensorflow(argv[0]);
  Models models;
  for (int i = 1; i + 3 < argc; i += 4) models[argv[i]] = std::make_unique<Model>(argv[i + 1], argv[i + 2], argv[i + 3]);
  return models;
}
