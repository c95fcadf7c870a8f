//! Backbones other than the embedded one: ResNets against PyTorch, and weights from the files they are published in.

use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use diad::config::{BACKBONE_NAMES, FeatureConfig};
use diad::device::Device;
use diad::error::{Error, Result};
use diad::model::import::{PUBLISHED, Trunk};
use diad::model::{RESNET_NAMES, Weights, backbone, channels, embedded, weight_shapes};
use safetensors::SafeTensors;

mod common;

use common::weights_by_formula as weights;

mod resnet {
    use super::*;

    // The golden numbers come from this (PyTorch 2, float64). Weights are made by a formula, in the order in which the
    // network uses them, so that no file is needed:
    //
    //     import math, torch, torch.nn.functional as F
    //     torch.set_default_dtype(torch.float64)
    //     count = 0
    //     def tensor(*shape, amplitude=1.0, offset=0.0):
    //         global count
    //         i = torch.arange(math.prod(shape), dtype=torch.int64) + 7 * count
    //         count += 1
    //         return (offset + amplitude * torch.sin(1 + (i * i % 1009).double())).reshape(shape)
    //     def conv(x, out, k, stride=1):
    //         inp = x.shape[1]
    //         w = tensor(out, inp, k, k, amplitude=2 / math.sqrt(inp * k * k))
    //         gamma, beta = tensor(out, amplitude=0.3, offset=1), tensor(out, amplitude=0.3)
    //         mean, var = tensor(out, amplitude=0.3), tensor(out, amplitude=0.5, offset=1)
    //         return F.batch_norm(F.conv2d(x, w, stride=stride, padding=k // 2), mean, var, gamma, beta, eps=1e-5)
    //     def block(x, width, out, stride, bottleneck):
    //         if bottleneck:
    //             y = conv(F.relu(conv(F.relu(conv(x, width, 1)), width, 3, stride)), out, 1)
    //         else:
    //             y = conv(F.relu(conv(x, width, 3, stride)), out, 3)
    //         if stride != 1 or x.shape[1] != out:
    //             x = conv(x, out, 1, stride)
    //         return F.relu(y + x)
    //     def network(name, blocks, width, out, bottleneck, h=37, w=50):
    //         global count
    //         count = 0
    //         image = 127.5 + 127.5 * torch.sin(torch.arange(h * w * 3) * 0.05).reshape(1, h, w, 3)
    //         mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    //         x = F.relu(conv(((image / 255 - mean) / std).permute(0, 3, 1, 2), 64, 7, 2))
    //         x = F.max_pool2d(x, 3, 2, 1)
    //         for layer in range(3):
    //             for i in range(blocks[layer]):
    //                 x = block(x, width << layer, out << layer, 2 if layer and i == 0 else 1, bottleneck)
    //             v = x.sqrt().permute(0, 2, 3, 1)
    //             print(name, list(v.shape), v.mean(), v.std(), [v.flatten()[i] for i in (0, v.numel() // 3, v.numel() - 1)])
    //     network("resnet18", [2, 2, 2], 64, 64, False)
    //     network("resnet50", [3, 4, 6], 64, 256, True)
    //     network("wide-resnet50", [3, 4, 6], 128, 256, True)

    const HEIGHT: usize = 37;
    const WIDTH: usize = 50;

    /// Shape, mean, standard deviation and three values of one tap.
    type Golden = ([usize; 4], f64, f64, [f64; 3]);

    fn image() -> Tensor {
        let values = (0..HEIGHT * WIDTH * 3).map(|i| (127.5 + 127.5 * (i as f64 * 0.05).sin()) as f32);
        Tensor::from_iter(values, &candle_core::Device::Cpu).unwrap().reshape((1, HEIGHT, WIDTH, 3)).unwrap()
    }

    #[track_caller]
    fn assert_near(actual: f64, expected: f64, scale: f64) {
        assert!((actual - expected).abs() < 2e-5 * scale, "{actual} is not {expected} (scale {scale})");
    }

    #[track_caller]
    fn assert_golden(name: &str, golden: [Golden; 3]) {
        let network = backbone(name, &weights(name), &Device::cpu()).unwrap();
        let maps = network.forward(&image()).unwrap();
        assert_eq!(maps.len(), 3);
        for ((map, tap), (shape, mean, std, picked)) in maps.iter().zip(network.taps()).zip(golden) {
            assert_eq!(map.dims(), shape);
            assert_eq!((tap.channels, HEIGHT.div_ceil(tap.stride)), (shape[3], shape[1]));
            let values: Vec<f64> = map.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
            let n = values.len();
            let actual = values.iter().sum::<f64>() / n as f64;
            assert_near(actual, mean, std);
            let variance = values.iter().map(|value| (value - actual).powi(2)).sum::<f64>() / (n - 1) as f64;
            assert_near(variance.sqrt(), std, std);
            for (index, expected) in [0, n / 3, n - 1].into_iter().zip(picked) {
                assert_near(values[index], expected, std);
            }
        }
        let features = FeatureConfig { backbone: name.to_owned(), ..FeatureConfig::default() };
        assert_eq!(channels(&features).unwrap(), golden.iter().map(|(shape, ..)| shape[3]).sum::<usize>());
    }

    #[test]
    fn resnet18_answers_as_in_pytorch() {
        assert_golden(
            "resnet18",
            [
                ([1, 10, 13, 64], 1.779725292, 1.299005629, [0.5416755, 3.2442483, 1.3467120]),
                ([1, 5, 7, 128], 2.952810973, 2.263930578, [2.4623307, 2.8301564, 3.6254925]),
                ([1, 3, 4, 256], 4.967372611, 3.303545580, [2.6788280, 7.6258491, 8.3468972]),
            ],
        );
    }

    #[test]
    fn resnet50_answers_as_in_pytorch() {
        assert_golden(
            "resnet50",
            [
                ([1, 10, 13, 256], 2.612995740, 2.164481063, [3.5687479, 5.2630739, 0.0]),
                ([1, 5, 7, 512], 8.570564382, 7.102165687, [15.4586690, 7.5377790, 0.0]),
                ([1, 3, 4, 1024], 48.427803460, 39.795238145, [35.6440733, 0.0, 66.3560743]),
            ],
        );
    }

    #[test]
    fn wide_resnet50_answers_as_in_pytorch() {
        assert_golden(
            "wide-resnet50",
            [
                ([1, 10, 13, 256], 2.542769875, 2.117633322, [0.0, 3.4885615, 0.6302797]),
                ([1, 5, 7, 512], 8.663240050, 7.149672750, [0.0, 13.7736832, 0.0]),
                ([1, 3, 4, 1024], 65.817669382, 53.225027374, [61.3054669, 40.2413730, 113.8159344]),
            ],
        );
    }

    #[test]
    fn a_sample_does_not_depend_on_its_neighbours() {
        let network = backbone("resnet18", &weights("resnet18"), &Device::cpu()).unwrap();
        let (one, other) = (image(), (image() * 0.5).unwrap());
        let both = network.forward(&Tensor::cat(&[&other, &one], 0).unwrap()).unwrap();
        let alone = network.forward(&one).unwrap();
        for (both, alone) in both.iter().zip(&alone) {
            let second = both.narrow(0, 1, 1).unwrap().flatten_all().unwrap();
            assert_eq!(second.to_vec1::<f32>().unwrap(), alone.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
    }

    #[test]
    fn parameters_are_as_many_as_published() {
        // Those of torchvision's networks up to layer3, running statistics counted: what (a) their state dicts hold
        // without layer4, fc and num_batches_tracked.
        for (name, millions) in [("resnet18", 2.78), ("resnet50", 8.57), ("wide-resnet50", 24.90)] {
            let shapes = weight_shapes(name).unwrap();
            let count: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert!((count as f64 / 1e6 - millions).abs() < 0.02, "{name}: {count}");
        }
    }

    #[test]
    fn wrong_weights_and_images_are_refused() {
        let mut weights = weights("resnet18");
        let network = backbone("resnet18", &weights, &Device::cpu()).unwrap();
        for shape in [[1, 37, 50, 4], [1, 31, 50, 3], [0, 37, 50, 3]] {
            let images = Tensor::zeros(&shape, DType::F32, &candle_core::Device::Cpu).unwrap();
            let error = network.forward(&images).unwrap_err().to_string();
            assert!(error.contains("resnet18: expected images [B, H, W, 3]"), "{error}");
        }
        let shifted = weights["bn1.bias"].narrow(0, 0, 63).unwrap();
        weights.insert("bn1.bias".into(), shifted);
        let error = backbone("resnet18", &weights, &Device::cpu()).err().unwrap().to_string();
        assert!(error.contains("bn1.bias has shape [63], expected [64]"), "{error}");
        weights.remove("bn1.bias");
        let error = backbone("resnet18", &weights, &Device::cpu()).err().unwrap().to_string();
        assert!(error.contains("bn1.bias is missing, expected [64]"), "{error}");
        let error = backbone("resnet34", &weights, &Device::cpu()).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(&BACKBONE_NAMES.join(", ")), "{error}");
        assert_eq!(RESNET_NAMES.map(|name| BACKBONE_NAMES.contains(&name)), [true; 3]);
    }
}

mod import {
    use super::*;

    const EMBEDDED: &[u8] = include_bytes!("../src/model/efficientnet_lite0.f16.safetensors");

    /// Tensors as f32 by name.
    type Numbers = HashMap<String, (Vec<usize>, Vec<f32>)>;

    fn numbers(weights: &Weights) -> Numbers {
        let tensor = |(name, tensor): (&String, &Tensor)| {
            let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            (name.clone(), (tensor.dims().to_vec(), values))
        };
        weights.iter().map(tensor).collect()
    }

    fn lite0() -> Numbers {
        numbers(&embedded("efficientnet-lite0").unwrap().unwrap())
    }

    /// The older of PyTorch's formats, written as torch.save writes it, the numbers of a tensor last dimension slowest
    /// as in the published files.
    fn stream(tensors: &Numbers) -> Vec<u8> {
        let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        let int = |value: usize| [b"J", &(value as i32).to_le_bytes()[..]].concat();
        let tuple =
            |items: &[usize]| [b"(", &items.iter().flat_map(|i| int(*i)).collect::<Vec<_>>()[..], b"t"].concat();
        let (mut state, mut keys, mut data) = (b"\x80\x02}(".to_vec(), b"\x80\x02](".to_vec(), Vec::new());
        for (key, (name, (shape, values))) in tensors.iter().enumerate() {
            let strides: Vec<usize> = (0..shape.len()).map(|i| shape[..i].iter().product()).collect();
            let mut turned = vec![0f32; values.len()];
            for (index, value) in values.iter().enumerate() {
                let mut rest = index;
                let mut at = 0;
                for (side, stride) in shape.iter().zip(&strides).rev() {
                    at += rest % side * stride;
                    rest /= side;
                }
                turned[at] = *value;
            }
            let key = format!("storage{key}");
            state.extend(text(name));
            state.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            state.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&key), text("cpu")].concat());
            state.extend([int(values.len()), b"NtQ".to_vec(), int(0), tuple(shape), tuple(&strides)].concat());
            state.extend(b"\x89ccollections\nOrderedDict\n)RtR");
            keys.extend(text(&key));
            data.extend((values.len() as u64).to_le_bytes());
            data.extend(turned.iter().flat_map(|value| value.to_le_bytes()));
        }
        let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
        [&magic[..], &state, b"u.", &keys, b"e.", &data].concat()
    }

    fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in files {
            let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
            archive.start_file(*name, options).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    fn wheel(tensors: &Numbers) -> Vec<u8> {
        zipped(&[("package/__init__.py", b"pass\n"), ("package/models/lite0.pth", &stream(tensors))])
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    #[track_caller]
    fn assert_refused(path: &Path, backbone: Option<&str>, words: &str) {
        let error = Trunk::read(path, backbone).unwrap_err();
        assert!(error.to_string().contains(words), "'{error}' does not say '{words}'");
        assert!(error.to_string().starts_with(&path.display().to_string()), "'{error}' does not name the file");
        assert_eq!(error.exit_code(), 1);
    }

    fn read_back(bytes: &[u8]) -> Result<Numbers> {
        Ok(numbers(&candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu)?))
    }

    #[test]
    fn embedded_trunk_is_what_an_import_of_the_published_wheel_writes() {
        let (_, header) = SafeTensors::read_metadata(EMBEDDED).unwrap();
        let metadata = header.metadata().clone().unwrap();
        assert_eq!(metadata["backbone"], "efficientnet-lite0");
        assert_eq!(metadata["source"], PUBLISHED[0].file);
        assert_eq!(metadata["source_sha256"], PUBLISHED[0].sha256);
        assert_eq!(metadata["license"], "Apache-2.0");
        assert_eq!(metadata["attribution"], PUBLISHED[0].attribution);
        let mut names = header.offset_keys();
        names.sort();
        let mut expected: Vec<String> =
            weight_shapes("efficientnet-lite0").unwrap().into_iter().map(|(name, _)| name).collect();
        expected.sort();
        assert_eq!(names, expected);
    }

    #[test]
    fn every_format_gives_the_same_weights() {
        let (folder, expected) = (Folder::new(), lite0());
        let files = [
            folder.file("lite0.pth", &stream(&expected)),
            folder.file("package.whl", &wheel(&expected)),
            folder.file("trunk.safetensors", EMBEDDED),
        ];
        for file in files {
            let trunk = Trunk::read(&file, None).unwrap();
            assert_eq!(trunk.backbone, "efficientnet-lite0");
            assert_eq!(trunk.source, file.file_name().unwrap().to_str().unwrap());
            assert_eq!(trunk.sha256.len(), 64);
            assert_eq!(trunk.published, None);
            assert_eq!((trunk.tensors(), trunk.parameters()), (165, 716_928));
            assert!(numbers(&trunk.weights().unwrap()) == expected, "{}", file.display());
        }
    }

    #[test]
    fn output_holds_the_trunk_alone_and_depends_on_nothing_else() {
        let folder = Folder::new();
        let mut tensors = lite0();
        tensors.insert("_fc.weight".into(), (vec![2, 3], vec![0.5; 6]));
        let file = folder.file("lite0.pth", &stream(&tensors));
        let output = folder.0.path().join("trunk.safetensors");
        let trunk = Trunk::read(&file, Some("efficientnet-lite0")).unwrap();
        let size = trunk.save(&output).unwrap();
        let bytes = fs::read(&output).unwrap();
        assert_eq!(bytes.len(), size);
        assert!(read_back(&bytes).unwrap() == lite0());
        // Storages in another order are the same weights.
        let again = folder.file("lite0.pth", &stream(&tensors.clone()));
        let again = Trunk::read(&again, None).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
        assert_eq!(header % 8, 0);
        assert!(again.to_f16().unwrap()[header..] == bytes[header..]);
        assert!(trunk.to_f16().unwrap() == bytes);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        assert_eq!(metadata["source"], "lite0.pth");
        assert_eq!(metadata["source_sha256"], trunk.sha256);
        // Whose work an unknown file is, nobody but its owner can say.
        assert_eq!((metadata.get("license"), metadata.get("attribution")), (None, None));
        // What was written can be imported, and loads.
        let network =
            backbone("efficientnet-lite0", &Trunk::read(&output, None).unwrap().weights().unwrap(), &Device::cpu());
        assert_eq!(network.unwrap().taps().len(), 4);
    }

    #[test]
    fn resnets_are_recognised() {
        for name in RESNET_NAMES {
            let tensor = |(name, shape): (String, Vec<usize>)| {
                let zeros = Tensor::zeros(shape, DType::BF16, &candle_core::Device::Cpu).unwrap();
                (name, zeros)
            };
            let weights: Weights = weight_shapes(name).unwrap().into_iter().map(tensor).collect();
            let folder = Folder::new();
            let path = folder.0.path().join("network.safetensors");
            candle_core::safetensors::save(&weights, &path).unwrap();
            assert_eq!(Trunk::read(&path, None).unwrap().backbone, name);
        }
    }

    #[test]
    fn files_that_are_something_else_are_refused_by_name_and_reason() {
        let folder = Folder::new();
        assert_refused(&folder.file("empty.pth", b""), None, "is no file of weights");
        assert_refused(&folder.file("notes.txt", b"weights, later"), None, "is no file of weights");
        assert_refused(&folder.file("damaged.whl", b"PK\x03\x04 and nothing"), None, "as an archive");
        let header = b"\x10\0\0\0\0\0\0\0{\"no\":\"header\"}";
        assert_refused(&folder.file("damaged.safetensors", header), None, "as safetensors");
        assert_refused(&folder.file("a.whl", &zipped(&[("a.py", b"")])), None, "0 .pth files");
        let two = zipped(&[("a.pth", b""), ("b.pth", b"")]);
        assert_refused(&folder.file("b.whl", &two), None, "2 .pth files");
        let inner = zipped(&[("a.pth", b"not weights")]);
        assert_refused(&folder.file("c.whl", &inner), None, "is no file of weights");
        let other = HashMap::from([("x".to_string(), (vec![2], vec![1.0, 2.0]))]);
        assert_refused(&folder.file("other.pth", &stream(&other)), None, "holds no weights of efficientnet-lite0, ");
        let copy = folder.file(PUBLISHED[1].file, &wheel(&other));
        assert_refused(&copy, None, PUBLISHED[1].sha256);

        let missing = folder.0.path().join("missing.whl");
        let error = Trunk::read(&missing, None).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == missing), "{error}");
        assert!(matches!(Trunk::read(folder.0.path(), None).unwrap_err(), Error::Io { .. }));
        let error = Trunk::read(&missing, Some("vgg16")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("vgg16"), "{error}");
    }

    #[test]
    fn incomplete_and_impossible_weights_are_refused_by_name() {
        let folder = Folder::new();
        let read = |change: &dyn Fn(&mut Numbers)| {
            let mut tensors = lite0();
            change(&mut tensors);
            folder.file("changed.pth", &stream(&tensors))
        };
        let path = read(&|tensors| drop(tensors.remove("_blocks.10._bn2.bias")));
        assert_refused(
            &path,
            None,
            "lacks 1 of the 165 weights of efficientnet-lite0: _blocks.10._bn2.bias is missing",
        );
        assert_refused(&path, Some("efficientnet-lite1"), "weights of efficientnet-lite1");
        assert_refused(&path, Some("resnet18"), "holds no weights of resnet18: conv1.weight is missing");
        let path = read(&|tensors| tensors.get_mut("_bn0.bias").unwrap().0 = vec![4, 8]);
        assert_refused(&path, None, "_bn0.bias has shape [4, 8], expected [32]");
        for value in [f32::NAN, f32::INFINITY] {
            let path = read(&|tensors| tensors.get_mut("_bn0.bias").unwrap().1[3] = value);
            assert_refused(&path, None, "_bn0.bias: holds");
        }
        let path = read(&|tensors| tensors.get_mut("_bn0.bias").unwrap().1[3] = 70_000.0);
        let output = folder.0.path().join("output");
        let error = Trunk::read(&path, None).unwrap().save(&output).unwrap_err();
        assert!(error.to_string().contains("_bn0.bias: holds 70000, which is beyond the range of f16"), "{error}");
        assert!(!output.exists());
    }

    #[test]
    fn every_cut_of_a_wheel_is_an_error() {
        let (folder, wheel) = (Folder::new(), wheel(&lite0()));
        for part in 0..20 {
            let cut = wheel.len() * part / 20;
            let path = folder.file("cut.whl", &wheel[..cut]);
            assert!(matches!(Trunk::read(&path, None).unwrap_err(), Error::Model { .. }), "{cut} bytes");
        }
    }
}
