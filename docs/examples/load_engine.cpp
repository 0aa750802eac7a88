// Runs a bundle's model.engine: `load_engine model.engine INPUT.bin ...` writes NAME.bin for each output.
// INPUT.bin is what numpy's array.tofile() writes: one file for each input of manifest.json, in its type and usual shape.
//
//   g++ -std=c++17 load_engine.cpp -I TENSORRT/include -I CUDA/include -L TENSORRT/lib -L CUDA/lib64 -lnvinfer -lcudart -o load_engine
//
// TensorRT-RTX is linked by -ltensorrt_rtx in the place of -lnvinfer.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using namespace nvinfer1;

struct Logger : ILogger {
    void log(Severity severity, char const* words) noexcept override {
        if (severity <= Severity::kERROR) std::cerr << words << '\n';
    }
};

void require(bool holds, std::string const& words) {
    if (!holds) throw std::runtime_error(words);
}

std::vector<char> read(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), path + " cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

std::size_t bytes(Dims const& shape, DataType type) {
    bool const four = type == DataType::kFLOAT || type == DataType::kINT32, two = type == DataType::kHALF || type == DataType::kBF16;
    std::size_t size = type == DataType::kINT64 ? 8 : four ? 4 : two ? 2 : 1;
    for (int i = 0; i < shape.nbDims; ++i) size *= static_cast<std::size_t>(shape.d[i]);
    return size;
}

int main(int count, char** words) try {
    require(count > 1, "give model.engine and a file for each input");
    Logger logger;
    auto const blob = read(words[1]);
    std::unique_ptr<IRuntime> runtime{createInferRuntime(logger)};
    require(runtime != nullptr, "TensorRT does not start: is there an NVIDIA driver?");
    std::unique_ptr<ICudaEngine> engine{runtime->deserializeCudaEngine(blob.data(), blob.size())};
    require(engine != nullptr, std::string(words[1]) + " is for another GPU or TensorRT: build it again with lathe export");
    std::unique_ptr<IExecutionContext> context{engine->createExecutionContext()};
    require(context != nullptr, "there is not enough memory on the GPU");

    std::vector<char const*> inputs, outputs;
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
        char const* name = engine->getIOTensorName(i);
        bool const input = engine->getTensorIOMode(name) == TensorIOMode::kINPUT;
        (input ? inputs : outputs).push_back(name);
        if (input) context->setInputShape(name, engine->getProfileShape(name, 0, OptProfileSelector::kOPT));
    }
    require(count == 2 + static_cast<int>(inputs.size()), "give " + std::to_string(inputs.size()) + " files of inputs");
    auto const allocate = [&](char const* name) {  // the shapes of outputs follow from those of the inputs
        std::vector<char> host(bytes(context->getTensorShape(name), engine->getTensorDataType(name)));
        void* device = nullptr;
        require(cudaMalloc(&device, host.size()) == cudaSuccess, "there is not enough memory on the GPU");
        context->setTensorAddress(name, device);
        return std::pair{device, host};
    };
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        auto const [device, host] = allocate(inputs[i]);
        auto const values = read(words[2 + i]);
        require(values.size() == host.size(), std::string(inputs[i]) + " takes " + std::to_string(host.size()) + " bytes");
        cudaMemcpy(device, values.data(), values.size(), cudaMemcpyHostToDevice);
    }
    std::vector<std::pair<void*, std::vector<char>>> results;
    for (char const* name : outputs) results.push_back(allocate(name));
    require(context->enqueueV3(nullptr) && cudaDeviceSynchronize() == cudaSuccess, "the engine does not run");
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        auto& [device, host] = results[i];
        cudaMemcpy(host.data(), device, host.size(), cudaMemcpyDeviceToHost);
        std::ofstream(std::string(outputs[i]) + ".bin", std::ios::binary).write(host.data(), static_cast<std::streamsize>(host.size()));
    }
} catch (std::exception const& error) {
    std::cerr << "load_engine: " << error.what() << '\n';
    return 2;
}
