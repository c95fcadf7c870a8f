//! Enums whose variants have names: one list for configurations, model files, JSON, messages and parsing.

/// Declares an enum with the names of its variants. `what` is what an error calls it.
///
/// ```text
/// named! {
///     /// How a frame that is not square is fitted.
///     pub enum Fit: "fit" {
///         /// Width and height are scaled independently.
///         Stretch = "stretch",
///     }
/// }
/// ```
macro_rules! named {
    ($(#[$meta:meta])* $vis:vis enum $Enum:ident: $what:literal {
        $($(#[$about:meta])* $Variant:ident = $name:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $vis enum $Enum {
            $($(#[$about])* #[serde(rename = $name)] $Variant,)+
        }

        impl $Enum {
            /// The names, in the order of declaration.
            $vis const NAMES: &'static [&'static str] = &[$($name),+];

            /// All of them, in the order of declaration.
            $vis const ALL: [Self; Self::NAMES.len()] = [$(Self::$Variant),+];

            /// The name.
            $vis const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $Enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $Enum {
            type Err = crate::error::Error;

            fn from_str(name: &str) -> crate::error::Result<Self> {
                Self::ALL.into_iter().find(|one| one.name() == name).ok_or_else(|| {
                    let names = Self::NAMES.join(", ");
                    crate::error::Error::Usage(format!("{} = {name:?}: expected one of {names}", $what))
                })
            }
        }
    };
}

pub(crate) use named;

#[cfg(test)]
mod tests {
    named! {
        /// For this test.
        enum Fruit: "fruit" {
            /// One.
            Apple = "apple",
            /// The other.
            BlackBerry = "black-berry",
        }
    }

    #[test]
    fn a_name_is_the_same_in_text_and_in_json_and_leads_back() {
        for name in Fruit::NAMES {
            let fruit: Fruit = name.parse().unwrap();
            assert_eq!((fruit.name(), fruit.to_string().as_str()), (*name, *name));
            assert_eq!(serde_json::to_value(fruit).unwrap(), *name);
            assert_eq!(serde_json::from_value::<Fruit>((*name).into()).unwrap(), fruit);
        }
        assert_eq!(format!("{:>6}", Fruit::Apple), " apple");
        let error = "pear".parse::<Fruit>().unwrap_err().to_string();
        assert_eq!(error, "fruit = \"pear\": expected one of apple, black-berry");
    }
}
