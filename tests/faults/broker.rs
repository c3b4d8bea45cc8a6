//! x
use crate::mischief::*;
use crate::support::rabbitmq::RabbitMq;
use crate::world::{Places, Settings, World};
use rand::SeedableRng;
use std::time::Duration;

#[tokio::test]
async fn scratch() {
    let broker = RabbitMq::start_with("consumer_timeout = 3000").await;
    let places = Places { amqp_url: broker.amqp_url(), ..Places::shared().await };
    let world = World::unmigrated(places, Settings::default()).await;
    world.cli(&["migrate"]).await.with(0);
    let service = world.serve(&[]);
    service.says("worker consumes").await;
    service.says("intake consumes").await;
    println!("{}", broker.crash_channels());
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{}", service.log());
    println!("------- {}", broker.close_connections());
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{}", service.log());
    let mut m = Mischief::connect(&broker.amqp_url(), &world.namespace).await.unwrap();
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    for to in Victim::ALL {
        for f in Forgery::ALL {
            m.forge_as(&mut rng, to, f).await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!("------------ {}", service.log());
    let amqp = crate::amqp::Amqp::connect(&world).await;
    while let Some(x) = amqp.try_take(&format!("{}.dead", world.namespace)).await {
        println!("{} {:?}", x.body.len(), x.headers.get("x-reprieve-reason"));
    }
}
